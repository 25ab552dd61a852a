SELECT adv_campaign_id
FROM campaigns
WHERE restaurant_id NOT IN (SELECT restaurant_id FROM subscribers_restaurants)
