-- Runs in Postgres; its rows are the lookup table `subscribers_restaurants` in triggers.sql. DISTINCT because the table
-- holds the same subscription under several ids, and one client gets one trigger per campaign.
SELECT DISTINCT restaurant_id, client_id
FROM public.subscribers_restaurants
