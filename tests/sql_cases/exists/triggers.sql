SELECT c.adv_campaign_id
FROM campaigns c
WHERE c.adv_campaign_datetime_start <= to_unixtime(now())  -- outcome: not_started
  AND c.adv_campaign_datetime_end >= to_unixtime(now())    -- outcome: expired
  AND EXISTS (SELECT 1 FROM subscribers_restaurants s WHERE s.restaurant_id = c.restaurant_id)
