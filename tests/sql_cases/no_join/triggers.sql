SELECT adv_campaign_id FROM campaigns LIMIT 2
