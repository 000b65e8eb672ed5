-- ARGV: new counter's id, message, `accepted` frame
local frame, _, forgotten = outcome(ARGV[2])
if not frame and not forgotten then
  publish(LIVE, ARGV[3], ARGV[1])
end
return { 'done' }
