SELECT c.adv_campaign_id
FROM campaigns c
-- outcome: lost
WHERE c.adv_campaign_id <> 'x'
