SELECT adv_campaign_id, 'oops
FROM campaigns
