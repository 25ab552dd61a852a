-- a job only reads
INSERT INTO subscribers_restaurants SELECT 1, 2
