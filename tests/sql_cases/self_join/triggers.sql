SELECT a.adv_campaign_id, b.adv_campaign_id AS other FROM campaigns a JOIN campaigns b ON a.restaurant_id = b.restaurant_id AND a.adv_campaign_id < b.adv_campaign_id
