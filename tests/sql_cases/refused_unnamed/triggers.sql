SELECT c.adv_campaign_id,
  upper(c.adv_campaign_content)
FROM campaigns c
