WITH active AS (SELECT a.*, upper(adv_campaign_id) AS id FROM campaigns a WHERE a.adv_campaign_datetime_start <= to_unixtime(now()))
SELECT t.id, t.who FROM (SELECT c.id, s.client_id AS who FROM active c JOIN subscribers_restaurants s ON s.restaurant_id = c.restaurant_id ORDER BY c.id) AS t ORDER BY t.who LIMIT 100
