-- A few subscriptions for the local stack, one of them twice, as in real life. Run again, it adds nothing.
INSERT INTO public.subscribers_restaurants (client_id, restaurant_id)
SELECT client_id, restaurant_id
FROM (VALUES
  ('023e4567-e89b-12d3-a456-426614174000', '123e4567-e89b-12d3-a456-426614174000'),
  ('023e4567-e89b-12d3-a456-426614174000', '123e4567-e89b-12d3-a456-426614174000'),
  ('023e4567-e89b-12d3-a456-426614174001', '123e4567-e89b-12d3-a456-426614174000'),
  ('023e4567-e89b-12d3-a456-426614174002', '123e4567-e89b-12d3-a456-426614174001')
) AS seed (client_id, restaurant_id)
WHERE NOT EXISTS (SELECT FROM public.subscribers_restaurants);
