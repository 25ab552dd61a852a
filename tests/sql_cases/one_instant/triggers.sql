SELECT adv_campaign_id, now() AS a, current_timestamp AS b, current_date AS d, today() AS e, current_time AS t,
  now() = current_timestamp AS same, CAST(to_unixtime(now()) AS INT) AS at, date_trunc('hour', now()) AS hour, now() - INTERVAL '1 day' AS before
FROM campaigns
WHERE now() = (SELECT max(now()) FROM subscribers_restaurants)
