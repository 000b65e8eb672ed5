-- `delivered_outcomes`. ARGV: messages. Returns a flat list of message, position and frame (empty
-- if the message was forgotten).
local found = {}
for _, message in ipairs(ARGV) do
  local frame, position, is_forgotten = outcome(message)
  if position and (frame or is_forgotten) then
    found[#found + 1] = message
    found[#found + 1] = position
    found[#found + 1] = frame or ''
  end
end
return found
