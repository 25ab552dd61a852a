SELECT
  c.adv_campaign_id,
  c.adv_campain_content
FROM campaigns c
