SELECT adv_campaign_id INTO x FROM campaigns
