-- What a campaign message must look like: a JSON object with these fields. A field that is NOT NULL and missing, null
-- or of another type makes the message a dead letter; fields that are not named here are ignored.
CREATE TABLE campaigns (
  restaurant_id               VARCHAR NOT NULL,
  adv_campaign_id             VARCHAR NOT NULL,
  adv_campaign_content        VARCHAR NOT NULL,
  adv_campaign_owner          VARCHAR NOT NULL,
  adv_campaign_owner_contact  VARCHAR NOT NULL,
  adv_campaign_datetime_start BIGINT  NOT NULL,  -- unix seconds, UTC
  adv_campaign_datetime_end   BIGINT  NOT NULL,  -- unix seconds, UTC
  datetime_created            BIGINT  NOT NULL   -- unix seconds, UTC
);
