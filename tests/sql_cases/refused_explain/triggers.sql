EXPLAIN SELECT adv_campaign_id FROM campaigns
