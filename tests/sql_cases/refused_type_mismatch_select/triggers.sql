SELECT c.adv_campaign_id,
  c.adv_campaign_content + now() AS sum
FROM campaigns c
