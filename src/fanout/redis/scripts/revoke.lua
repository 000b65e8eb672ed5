-- ARGV: new counter's id, time of the revocation (milliseconds), its frame. Kept without an end:
-- how long a signed token is good is its issuer's affair.
local before = redis.call('GET', P .. 'rv')
if not before or tonumber(before) < tonumber(ARGV[2]) then
  redis.call('SET', P .. 'rv', ARGV[2])
end
publish(TERMINAL, ARGV[3], ARGV[1])
return {}
