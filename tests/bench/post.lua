-- SPDX-License-Identifier: Apache-2.0
-- wrk script: POSTs the file named by the first argument with the headers that follow (Name=value),
-- and counts answers that are not 200.
local failed = 0

function init(args)
    local f = assert(io.open(args[1], "rb"))
    wrk.method = "POST"
    wrk.body = f:read("*a")
    f:close()
    for i = 2, #args do
        local name, value = args[i]:match("^([^=]+)=(.*)$")
        wrk.headers[name] = value
    end
end

function response(status)
    if status ~= 200 then
        failed = failed + 1
        print("answer with status " .. status)
        if failed > 10 then
            wrk.thread:stop()
        end
    end
end
