SELECT c.adv_campaign_id, n.clients
FROM campaigns c
JOIN (SELECT restaurant_id, count(*) AS clients FROM subscribers_restaurants GROUP BY restaurant_id) n ON n.restaurant_id = c.restaurant_id
WHERE c.adv_campaign_datetime_start <= to_unixtime(now())  -- outcome: not_started
  AND c.adv_campaign_datetime_end >= to_unixtime(now())    -- outcome: expired
