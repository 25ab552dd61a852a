SELECT c.adv_campaign_id, s.client_id
FROM campaigns c
LEFT JOIN subscribers_restaurants s ON s.restaurant_id = c.restaurant_id
WHERE c.adv_campaign_datetime_start <= to_unixtime(now())  -- outcome: not_started
  AND c.adv_campaign_datetime_end >= to_unixtime(now())    -- outcome: expired
