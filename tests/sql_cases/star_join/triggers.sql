SELECT *
FROM campaigns JOIN subscribers_restaurants USING (restaurant_id)
