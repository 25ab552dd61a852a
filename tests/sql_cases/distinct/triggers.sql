SELECT DISTINCT restaurant_id FROM campaigns
