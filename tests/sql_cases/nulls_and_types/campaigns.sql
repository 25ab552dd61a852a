CREATE TABLE campaigns (id INT NOT NULL, note VARCHAR, flag BOOLEAN, score DOUBLE);
