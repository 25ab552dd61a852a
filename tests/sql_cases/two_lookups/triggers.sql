SELECT c.adv_campaign_id, s.client_id, d.device
FROM campaigns c
JOIN subscribers_restaurants s ON s.restaurant_id = c.restaurant_id
JOIN devices d ON d.client_id = s.client_id
WHERE c.adv_campaign_datetime_start <= to_unixtime(now())  -- outcome: not_started
  AND c.adv_campaign_datetime_end >= to_unixtime(now())    -- outcome: expired
