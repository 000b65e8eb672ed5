-- `issue_token` and `stored_token`. KEYS: the user's token, under the original system's key. ARGV:
-- the token to store if the user has none (empty: only read), its time to live in seconds. Returns
-- the stored token and its remaining time to live in seconds, or nothing.
if ARGV[1] ~= '' then
  redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2])
end
local token = redis.call('GET', KEYS[1])
if not token then
  return {}
end
return { token, tostring(redis.call('TTL', KEYS[1])) }
