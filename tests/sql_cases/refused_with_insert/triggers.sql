WITH x AS (SELECT 1) INSERT INTO subscribers_restaurants SELECT 1, 2
