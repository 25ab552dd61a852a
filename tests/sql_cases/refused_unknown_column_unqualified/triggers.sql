SELECT c.adv_campaign_id
FROM campaigns c
WHERE adv_campaign_datetime_strat < 5
