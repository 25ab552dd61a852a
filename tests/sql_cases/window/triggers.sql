SELECT adv_campaign_id, row_number() OVER (ORDER BY adv_campaign_id) AS place FROM campaigns
