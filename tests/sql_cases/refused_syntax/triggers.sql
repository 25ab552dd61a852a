SELECT adv_campaign_id
FORM campaigns
WHERE
