SELECT s.client_id
FROM campaigns c
JOIN subscribers_restaurants s ON s.restaurant_id = c.restaurant_id
WHERE s.client_id <> 'x' -- outcome: blocked
