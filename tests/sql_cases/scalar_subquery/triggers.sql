SELECT c.adv_campaign_id, (SELECT count(*) FROM subscribers_restaurants) AS clients
FROM campaigns c
WHERE c.adv_campaign_datetime_start <= to_unixtime(now())  -- outcome: not_started
  AND c.adv_campaign_datetime_end >= to_unixtime(now())    -- outcome: expired
