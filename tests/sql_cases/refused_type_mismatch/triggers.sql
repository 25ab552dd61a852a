SELECT c.adv_campaign_id
FROM campaigns c
WHERE c.adv_campaign_id <> 'x'
  AND c.adv_campaign_datetime_start = INTERVAL '1 day'
