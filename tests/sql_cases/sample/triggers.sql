-- One SELECT over the campaigns of a micro-batch and the lookup tables. Its columns, in this order, are what both sinks
-- get. now() is one instant for the whole batch. A comment `outcome:` names what becomes of a campaign that fails the
-- condition on its line.
SELECT
  c.restaurant_id,
  c.adv_campaign_id,
  c.adv_campaign_content,
  c.adv_campaign_owner,
  c.adv_campaign_owner_contact,
  c.adv_campaign_datetime_start,
  c.adv_campaign_datetime_end,
  s.client_id,
  c.datetime_created,
  CAST(to_unixtime(now()) AS INT) AS trigger_datetime_created
FROM campaigns c
JOIN subscribers_restaurants s ON s.restaurant_id = c.restaurant_id
WHERE c.adv_campaign_datetime_start <= to_unixtime(now())  -- outcome: not_started
  AND c.adv_campaign_datetime_end >= to_unixtime(now())    -- outcome: expired
