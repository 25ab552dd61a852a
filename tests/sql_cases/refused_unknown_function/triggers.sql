SELECT c.adv_campaign_id,
  CAST(to_unixtim(now()) AS INT) AS at
FROM campaigns c
