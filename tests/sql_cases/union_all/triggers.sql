SELECT adv_campaign_id FROM campaigns WHERE adv_campaign_datetime_start > to_unixtime(now())
UNION ALL
SELECT adv_campaign_id FROM campaigns
