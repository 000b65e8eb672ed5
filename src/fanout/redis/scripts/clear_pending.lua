-- ARGV: message
drop_pending(ARGV[1])
return { 'done' }
