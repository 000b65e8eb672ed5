-- ARGV: messages
local found = {}
for _, message in ipairs(ARGV) do
  local frame, position = outcome(message)
  if frame and position then
    found[#found + 1] = position
    found[#found + 1] = frame
  end
end
return found
