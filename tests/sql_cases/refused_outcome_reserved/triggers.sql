SELECT c.adv_campaign_id
FROM campaigns c
WHERE c.adv_campaign_id <> 'x' -- outcome: triggered
