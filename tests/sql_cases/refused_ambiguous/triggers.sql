SELECT restaurant_id
FROM campaigns c
JOIN subscribers_restaurants s ON s.restaurant_id = c.restaurant_id
