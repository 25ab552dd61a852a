SELECT c.restaurant_id, count(*) AS campaigns, CAST(to_unixtime(now()) AS INT) AS at
FROM campaigns c GROUP BY c.restaurant_id
