SELECT s.client_id
FROM campaigns c
JOIN subscriber_restaurants s ON s.restaurant_id = c.restaurant_id
