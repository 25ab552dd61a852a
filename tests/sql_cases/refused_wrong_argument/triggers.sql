SELECT
  upper(c.adv_campaign_content, 1) AS loud
FROM campaigns c
