/** Types of the chatmesh client. */

export declare const SUBPROTOCOL: 'chatmesh.v1';
