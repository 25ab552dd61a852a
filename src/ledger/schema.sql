-- The job's own tables: progress and unconfirmed batches. {schema} is [ledger] schema, quoted.
CREATE SCHEMA IF NOT EXISTS {schema};

-- One row: the identity of this ledger (it stands in every offset that the job commits) and the version of its protocol.
CREATE TABLE IF NOT EXISTS {schema}.ledger (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  job      uuid NOT NULL DEFAULT gen_random_uuid(),
  protocol int4 NOT NULL
);
INSERT INTO {schema}.ledger (protocol) VALUES ({protocol}) ON CONFLICT DO NOTHING;

-- How far each partition has come. Offsets below next_offset have taken effect in Postgres, once.
CREATE TABLE IF NOT EXISTS {schema}.progress (
  cluster_id        text   NOT NULL,
  group_id          text   NOT NULL,
  topic_id          text   NOT NULL,
  partition         int4   NOT NULL,
  topic             text   NOT NULL,
  next_offset       int8   NOT NULL,
  last_output_to    int8   NOT NULL,  -- the end of the last range that had output
  epoch             int8   NOT NULL,  -- grows with each claim; an advance under an older one is refused
  metadata          text   NOT NULL,  -- what goes with next_offset into Kafka: job;epoch;commit
  transactional_ids text[] NULL,      -- the owner's, to be fenced by the next one; null once released
  updated_at        timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (cluster_id, group_id, topic_id, partition)
);

-- A micro-batch with output whose Kafka commit has not been seen: all that its re-emission needs.
CREATE TABLE IF NOT EXISTS {schema}.parts (
  commit_id         uuid  NOT NULL,
  cluster_id        text  NOT NULL,
  group_id          text  NOT NULL,
  topic_id          text  NOT NULL,
  partition         int4  NOT NULL,
  from_offset       int8  NOT NULL,
  to_offset         int8  NOT NULL,
  format            int4  NOT NULL,
  previous_metadata text  NOT NULL,  -- what stands beside from_offset in Kafka while this part is unconfirmed
  rows              int8  NOT NULL,
  letters           int8  NOT NULL,
  outcomes          jsonb NOT NULL,  -- messages by outcome
  triggered_at      timestamptz NOT NULL,
  sql_hash          text  NOT NULL,
  sink_table        text  NOT NULL,
  output_topic      text  NOT NULL,
  output_key        text  NULL,      -- the column whose value is the record's key
  letter_topic      text  NOT NULL,
  PRIMARY KEY (commit_id, partition)
);
CREATE INDEX IF NOT EXISTS parts_of_partition ON {schema}.parts (cluster_id, group_id, topic_id, partition);

-- The output rows and dead letters of the parts: zstd-compressed Arrow IPC streams.
CREATE TABLE IF NOT EXISTS {schema}.chunks (
  commit_id uuid  NOT NULL,
  partition int4  NOT NULL,
  number    int4  NOT NULL,  -- in the order of production
  kind      text  NOT NULL CHECK (kind IN ('rows', 'letters')),
  body      bytea NOT NULL,
  PRIMARY KEY (commit_id, partition, number)
);
-- zstd has done its work already.
ALTER TABLE {schema}.chunks ALTER COLUMN body SET STORAGE EXTERNAL;

-- Dead letters that are too large for the dead-letter topic, whole.
CREATE TABLE IF NOT EXISTS {schema}.letters (
  cluster_id  text  NOT NULL,
  group_id    text  NOT NULL,
  topic_id    text  NOT NULL,
  partition   int4  NOT NULL,
  "offset"    int8  NOT NULL,
  topic       text  NOT NULL,
  body        bytea NOT NULL,  -- a zstd-compressed Arrow IPC stream of one letter
  stage       text  NOT NULL,
  path        text  NOT NULL,
  reason      text  NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (cluster_id, group_id, topic_id, partition, "offset")
);

-- Moves partitions forward, all or none, or raises: DB001 where the caller's claim is no longer the present one, DB002
-- where the ledger speaks another protocol. Partitions come in ascending order, so that two callers cannot deadlock.
CREATE OR REPLACE FUNCTION {schema}.advance(
  in_protocol int4, in_cluster text, in_group text, in_topic_id text, in_partitions int4[], in_epochs int8[],
  in_froms int8[], in_tos int8[], in_outputs boolean[], in_metadata text[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  seen record;
BEGIN
  IF (SELECT protocol FROM {schema}.ledger) IS DISTINCT FROM in_protocol THEN
    RAISE EXCEPTION 'the ledger does not speak protocol %', in_protocol USING ERRCODE = 'DB002';
  END IF;
  FOR i IN 1 .. coalesce(array_length(in_partitions, 1), 0) LOOP
    SELECT epoch, next_offset INTO seen FROM {schema}.progress
      WHERE cluster_id = in_cluster AND group_id = in_group AND topic_id = in_topic_id AND partition = in_partitions[i]
      FOR UPDATE;
    IF NOT FOUND OR seen.epoch <> in_epochs[i] OR seen.next_offset <> in_froms[i] THEN
      RAISE EXCEPTION 'partition %: the ledger has epoch % and offset %, this commit epoch % and offset %',
        in_partitions[i], seen.epoch, seen.next_offset, in_epochs[i], in_froms[i] USING ERRCODE = 'DB001';
    END IF;
    UPDATE {schema}.progress
      SET next_offset = in_tos[i],
          last_output_to = CASE WHEN in_outputs[i] THEN in_tos[i] ELSE last_output_to END,
          metadata = in_metadata[i],
          updated_at = now()
      WHERE cluster_id = in_cluster AND group_id = in_group AND topic_id = in_topic_id AND partition = in_partitions[i];
  END LOOP;
END $$;
