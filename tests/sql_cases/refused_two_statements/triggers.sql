SELECT adv_campaign_id FROM campaigns;
DROP TABLE campaigns;
