-- `accept`. ARGV: id for a new counter, message, `accepted` frame
local frame, _, is_forgotten = outcome(ARGV[2])
if not frame and not is_forgotten then
  publish(LIVE_CHANNEL, ARGV[3], ARGV[1])
end
return { 'done' }
