SELECT c.adv_campaign_id, c.__row
FROM campaigns c
