SELECT id, note, CASE WHEN flag THEN 'yes' ELSE 'no' END AS answer, score * 2 AS twice
FROM campaigns
WHERE score > 1 -- outcome: low
  AND coalesce(note, 'x') <> 'skip' -- outcome: skipped
