-- `revoke`. ARGV: id for a new counter, time of the revocation (ms), frame that announces the
-- revocation. The time is stored without an expiry, because only the issuer of a signed token knows
-- how long the token is valid.
local key = PREFIX .. 'rv'
local previous = redis.call('GET', key)
if not previous or tonumber(previous) < tonumber(ARGV[2]) then
  redis.call('SET', key, ARGV[2])
end
publish(TERMINAL_CHANNEL, ARGV[3], ARGV[1])
return {}
