SELECT c.adv_campaign_id, s.client_id
FROM campaigns c
JOIN subscribers_restaurants s ON s.restaurant_id = c.restaurant_id
WHERE c.adv_campaign_datetime_start <= to_unixtime(now())
  AND (c.adv_campaign_datetime_end >= to_unixtime(now())  -- outcome: over
    AND c.adv_campaign_content <> 'secret') AND c.adv_campaign_id <> 'c7' -- outcome: hidden
