SELECT *
FROM campaigns
WHERE adv_campaign_datetime_end >= to_unixtime(now()) -- outcome: expired
