-- The subscriptions, where an installation has none yet: who keeps which restaurant among the favourites.
CREATE TABLE IF NOT EXISTS public.subscribers_restaurants (
  id            serial4 NOT NULL,
  client_id     varchar NOT NULL,
  restaurant_id varchar NOT NULL,
  CONSTRAINT pk_id PRIMARY KEY (id)
);
